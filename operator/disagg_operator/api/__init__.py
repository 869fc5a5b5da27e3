"""The resource `DisaggDeployment`: spec, status, and the CRD generated from both."""
