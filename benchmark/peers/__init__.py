"""How do other frameworks do where the same is asked of them? Programs that run in their place."""
