"""Judge0 CE 1.13.1: submissions that are run once or more, and judged by their output."""
