"""The panels beside a conversation: settings, the context's use, feedback."""
