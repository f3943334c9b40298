"""What was measured, as files, and the README's section made of them."""
