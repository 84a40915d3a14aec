"""Pictures of images, drawn without a plotting library, so that every program can draw them."""
