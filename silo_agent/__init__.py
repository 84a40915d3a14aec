"""The silo agent: trains beside an operator's images and sends backbone tensors only."""
