"""What a pipeline family has to tell the host: capability classes and their ready-made bases."""
