{{/* RELEASE, or RELEASE-banyan. Short enough for what pods are named after. */}}
{{- define "banyan.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 46 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 46 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "banyan.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "banyan.podLabels" -}}
{{ include "banyan.selector" . }}
app.kubernetes.io/component: controller
app.kubernetes.io/part-of: banyan
{{- end -}}

{{- define "banyan.labels" -}}
{{ include "banyan.podLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | quote }}
{{- end -}}

{{- define "banyan.image" -}}
{{- if .Values.image.digest -}}
{{ printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else -}}
{{ printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) }}
{{- end -}}
{{- end -}}

{{- define "banyan.serviceAccount" -}}
{{- default (include "banyan.fullname" .) .Values.serviceAccount.name -}}
{{- end -}}

{{- define "banyan.claim" -}}
{{- default (printf "%s-data" (include "banyan.fullname" .)) .Values.persistence.existingClaim -}}
{{- end -}}

{{- define "banyan.tokenSecret" -}}
{{- default (printf "%s-join" (include "banyan.fullname" .)) .Values.join.existingSecret -}}
{{- end -}}

{{/* A map as k=v,k=v: what a variable of the controller takes. */}}
{{- define "banyan.pairs" -}}
{{- $pairs := list -}}
{{- range $key, $value := . }}{{ $pairs = append $pairs (printf "%s=%v" $key $value) }}{{ end -}}
{{- join "," $pairs -}}
{{- end -}}

{{/* Everything that could differ is set, even to nothing: a variable wins over what the data folder remembers of an earlier release. */}}
{{- define "banyan.environment" -}}
{{- $service := include "banyan.fullname" . -}}
{{- $names := list (printf "%s.%s.svc" $service .Release.Namespace) (printf "%s.%s.svc.cluster.local" $service .Release.Namespace) -}}
- {name: BANYAN_DATA, value: /var/lib/banyan}
- {name: BANYAN_SHIM, value: none}
- {name: BANYAN_LABELS, value: {{ include "banyan.pairs" .Values.cluster.labels | quote }}}
- name: BANYAN_PROXY
  valueFrom: {secretKeyRef: {name: {{ include "banyan.fullname" . }}-proxy, key: url}}
- {name: BANYAN_API_LISTEN, value: "0.0.0.0:8443"}
- {name: BANYAN_API_ADVERTISE, value: {{ concat .Values.api.advertise $names | join "," | quote }}}
- {name: BANYAN_TUNNEL_LISTEN, value: "0.0.0.0:10000"}
- {name: BANYAN_TUNNEL_ADVERTISE, value: {{ join "," .Values.tunnel.advertise | quote }}}
- {name: BANYAN_BLOB_BUDGET, value: {{ .Values.blobBudget | quote }}}
- {name: BANYAN_LOG_FORMAT, value: {{ .Values.log.format | quote }}}
- {name: BANYAN_LOG_LEVEL, value: {{ .Values.log.level | quote }}}
{{- range $key, $value := .Values.settings }}
- {name: {{ printf "BANYAN_%s" (upper $key) }}, value: {{ $value | quote }}}
{{- end }}
{{- end -}}

{{- define "banyan.security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}
