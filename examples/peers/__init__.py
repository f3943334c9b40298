"""jaxinfer beside other inference engines, on the same weights and the same machine."""
