"""The page people play with: a Gradio app, a Space, and a static page, over `vae_runtime` alone."""
