"""The person re-identification model: backbone, transforms, features, retrieval."""
