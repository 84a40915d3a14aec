"""Generated stubs of proto/fedreid/v1 (`make proto`); a test proves that they match."""
