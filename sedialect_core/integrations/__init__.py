"""Where sedialect meets other libraries' objects: today diffusers."""
