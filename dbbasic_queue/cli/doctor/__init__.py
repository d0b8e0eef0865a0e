"""`dbbasic-queue doctor`: is everything all right?"""
