"""Scripted experts for robosuite's tasks: state machines that make demonstrations of several kinds.

They stand in for people, whose demonstrations are not to be had offline: way-points with drawn speed, tremor, grasp and route.
"""
