"""`litgpt chat`: a conversation in the terminal."""
