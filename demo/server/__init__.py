"""The server: its settings, its look, and what strangers may do."""
