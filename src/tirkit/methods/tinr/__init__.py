"""methods/tinr"""
