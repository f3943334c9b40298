"""The command line: `jaxinfer COMMAND`, one file a command."""
