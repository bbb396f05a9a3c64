{{/* RELEASE, or RELEASE-banyan-edge. Short enough for what pods are named after. */}}
{{- define "banyan-edge.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 46 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 46 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "banyan-edge.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "banyan-edge.podLabels" -}}
{{ include "banyan-edge.selector" . }}
app.kubernetes.io/component: controller
app.kubernetes.io/part-of: banyan
{{- end -}}

{{- define "banyan-edge.labels" -}}
{{ include "banyan-edge.podLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | quote }}
{{- end -}}

{{- define "banyan-edge.image" -}}
{{- if .Values.image.digest -}}
{{ printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else -}}
{{ printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) }}
{{- end -}}
{{- end -}}

{{- define "banyan-edge.serviceAccount" -}}
{{- default (include "banyan-edge.fullname" .) .Values.serviceAccount.name -}}
{{- end -}}

{{- define "banyan-edge.claim" -}}
{{- default (printf "%s-data" (include "banyan-edge.fullname" .)) .Values.persistence.existingClaim -}}
{{- end -}}

{{- define "banyan-edge.tokenSecret" -}}
{{- default (printf "%s-join" (include "banyan-edge.fullname" .)) .Values.join.existingSecret -}}
{{- end -}}

{{/* A map as k=v,k=v: what a variable of the controller takes. */}}
{{- define "banyan-edge.pairs" -}}
{{- $pairs := list -}}
{{- range $key, $value := . }}{{ $pairs = append $pairs (printf "%s=%v" $key $value) }}{{ end -}}
{{- join "," $pairs -}}
{{- end -}}

{{/* Everything that could differ is set, even to nothing: a variable wins over what the data folder remembers of an earlier release. */}}
{{- define "banyan-edge.environment" -}}
{{- $files := default (printf "%s-files.%s.svc" (include "banyan-edge.fullname" .) .Release.Namespace) .Values.modelFiles.clusterIP -}}
{{- $own := dict "worker_image" (include "banyan-edge.image" .) "files_url" (printf "https://%s:%v" $files .Values.modelFiles.port) -}}
{{- $kubernetes := merge (dict) .Values.cluster.kubernetes $own -}}
- {name: BANYAN_DATA, value: /var/lib/banyan}
- {name: BANYAN_SHIM, value: {{ .Values.cluster.shim | quote }}}
- {name: BANYAN_LABELS, value: {{ include "banyan-edge.pairs" .Values.cluster.labels | quote }}}
- {name: BANYAN_KUBERNETES, value: {{ include "banyan-edge.pairs" $kubernetes | quote }}}
- name: BANYAN_PROXY
  valueFrom: {secretKeyRef: {name: {{ include "banyan-edge.fullname" . }}-proxy, key: url}}
- {name: BANYAN_API_LISTEN, value: "0.0.0.0:8443"}
- {name: BANYAN_TUNNEL_LISTEN, value: ""}
- {name: BANYAN_BLOB_BUDGET, value: {{ .Values.blobBudget | quote }}}
- {name: BANYAN_LOG_FORMAT, value: {{ .Values.log.format | quote }}}
- {name: BANYAN_LOG_LEVEL, value: {{ .Values.log.level | quote }}}
{{- range $key, $value := .Values.settings }}
- {name: {{ printf "BANYAN_%s" (upper $key) }}, value: {{ $value | quote }}}
{{- end }}
{{- end -}}

{{- define "banyan-edge.security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}
