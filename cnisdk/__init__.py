"""cnisdk"""
