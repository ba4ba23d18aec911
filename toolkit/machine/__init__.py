"""What this machine is: its processor, memory and folders, and the advice that its kernel takes. Imports no other
room."""
