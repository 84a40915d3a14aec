"""Named tensors to chunks and back: the one place where protobuf meets our types."""
