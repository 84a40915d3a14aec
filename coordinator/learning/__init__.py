"""Aggregation, distillation and evaluation; runs in the worker process, never imports grpc."""
