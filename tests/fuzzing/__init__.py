"""What does a message do that somebody has tampered with?"""
