"""Files that are whole or absent, and files from and to the Hugging Face Hub."""
