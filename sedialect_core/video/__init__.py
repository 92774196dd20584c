"""Videos: sampled from pipelines, written, previewed and measured."""
