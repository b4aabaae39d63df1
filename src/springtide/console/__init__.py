"""What a person looks at: the live view in the terminal and the report."""
