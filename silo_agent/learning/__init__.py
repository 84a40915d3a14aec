"""What a silo learns from its own images; runs in a child process, never imports grpc."""
