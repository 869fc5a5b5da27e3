{{- /* The release's name, unless it does not say what is in it. */ -}}
{{- define "disagg.fullname" -}}
{{- if contains "disagg" .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-disagg" (.Release.Name | trunc 43 | trimSuffix "-") -}}
{{- end -}}
{{- end -}}

{{- define "disagg.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (include "disagg.fullname" .) -}}
{{- end -}}

{{- define "disagg.selector" -}}
app.kubernetes.io/name: disagg-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "disagg.labels" -}}
{{ include "disagg.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: disagg
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- /* What the operator may do; every line is a call that it makes. */ -}}
{{- define "disagg.rules" -}}
# The resource: its finalizer is patched on the object itself.
- apiGroups: [disagg.dev]
  resources: [disaggdeployments]
  verbs: [get, list, watch, patch]
- apiGroups: [disagg.dev]
  resources: [disaggdeployments/status]
  verbs: [patch]
# Where owner references are enforced, a controlling owner needs this.
- apiGroups: [disagg.dev]
  resources: [disaggdeployments/finalizers]
  verbs: [update]
# Scalers are made once and told how many groups there are; their numbers are somebody else's.
- apiGroups: [disagg.dev]
  resources: [disaggrolescalers]
  verbs: [get, list, watch, create, delete]
- apiGroups: [disagg.dev]
  resources: [disaggrolescalers/status]
  verbs: [patch]
# Pods are created and deleted, never changed; their readiness gate is a condition of the status.
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, create, delete]
- apiGroups: [""]
  resources: [pods/status]
  verbs: [patch]
# Server-side apply needs create and patch.
- apiGroups: [""]
  resources: [services]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
# Keys are made, replaced whole when they rotate, and never read back: no right to read any Secret.
# Patch would be one, since its answer is the whole object.
- apiGroups: [""]
  resources: [secrets]
  verbs: [create, update]
{{- if .Values.rbac.volcano }}
# PodGroups, too, are made once; they go with a Service of ours.
- apiGroups: [scheduling.volcano.sh]
  resources: [podgroups]
  verbs: [create]
{{- end }}
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end -}}
