"""Text in, checked token shards out: shard format, tokenizer, bytes, sources. No torch here."""
