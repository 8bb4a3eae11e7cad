"""LoRA beside PEFT: speed and memory, facts that are learned, adapters carried both ways."""
