"""What runs in a browser: the Gradio app, and in js/ the synced video comparer that ComfyUI shows too."""
