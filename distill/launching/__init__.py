"""Training on several processes: started here, by torchrun or by Ray Train; whole copies (DDP) or shards (FSDP2)."""
