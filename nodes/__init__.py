"""The nodes of ComfyUI. Entered through `comfy_entrypoint` alone: whatever else imports sedialect never comes here."""
