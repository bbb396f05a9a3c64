"""`banyan bench`: what a user's own tree does on their own machines.

command     the command: parts, plan, record, comparison
record      rows, their spread, what agrees within a tolerance (pure)
way         round trips and rates to each cluster, hop by hop
spread      a small change to every cluster and its word back; an application started everywhere and ended
load        an application under load: the four LoadGen scenarios, and what they cost each controller
loadgen     the program that speaks to MLCommons' LoadGen, in a process of its own
asking      connections that stay open, for load
machine     processor time and energy of the machine that this runs on
"""
