"""What is known of costs before a trial: how exact, learnt from what, and what comes of it."""
