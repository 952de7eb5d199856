"""MHA, MQA, GQA and MLA measured side by side: cache bytes, step time by depth, error of INT8 rows."""
