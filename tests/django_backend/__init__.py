"""The backend for Django's tasks, in a site."""
