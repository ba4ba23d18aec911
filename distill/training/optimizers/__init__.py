"""What updates the weights: AdamW with fp32 masters, Muon, and AdamW of bitsandbytes with its states in 8 bits."""
