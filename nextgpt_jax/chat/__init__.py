"""Asking chat endpoints that follow OpenAI's API: what was answered is kept, what fails for a while is asked again."""
