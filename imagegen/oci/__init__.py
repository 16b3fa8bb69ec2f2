"""OCI images: references, registries, layouts, documents."""
