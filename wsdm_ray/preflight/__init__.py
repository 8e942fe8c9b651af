"""What a job needs of its cluster, stores and models, checked before a model loads; and what it will take."""
