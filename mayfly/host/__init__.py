"""What one host gives to those who run code on it: configuration, admission, networks, machines
kept ready.
"""
