"""Text in, checked token shards out: the challenge's shard format, tokenizer, bytes, sources. No torch here."""
