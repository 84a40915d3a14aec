"""What an operator does with the models: compare, measure, export, embed, search.

Everything here reads and writes files of this machine; nothing is sent, and nothing imports grpc.
"""
