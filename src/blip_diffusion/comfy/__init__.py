"""ComfyUI nodes over the same generation requests as the command line; the folder comfyui/ is what ComfyUI loads."""
