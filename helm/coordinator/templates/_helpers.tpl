{{- define "coordinator.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "coordinator.selectorLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "coordinator.labels" -}}
{{ include "coordinator.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: "fedreid"
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | quote }}
{{- end -}}

{{- define "coordinator.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end -}}

{{- define "coordinator.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{ default (include "coordinator.fullname" .) .Values.serviceAccount.name }}
{{- else -}}
{{ required "serviceAccount.name is required where serviceAccount.create is false" .Values.serviceAccount.name }}
{{- end -}}
{{- end -}}

{{- define "coordinator.keysSecret" -}}
{{ default (printf "%s-keys" (include "coordinator.fullname" .)) .Values.keys.existingSecret }}
{{- end -}}

{{- define "coordinator.adminSecret" -}}
{{ default (printf "%s-admin" (include "coordinator.fullname" .)) .Values.admin.existingSecret }}
{{- end -}}

{{- define "coordinator.pkiSecret" -}}
{{- if .Values.pki.certManager.enabled -}}
{{ default (printf "%s-pki" (include "coordinator.fullname" .)) .Values.pki.existingSecret }}
{{- else -}}
{{ .Values.pki.existingSecret }}
{{- end -}}
{{- end -}}

{{- /* Every name by which the port is dialled, the public ones first. */ -}}
{{- define "coordinator.hostnames" -}}
{{- $inside := include "coordinator.fullname" . -}}
{{- $public := required "federation.hostnames is required: the names that silos dial" (first (default (list "") .Values.federation.hostnames)) -}}
{{- $names := concat .Values.federation.hostnames (list $inside (printf "%s.%s.svc" $inside .Release.Namespace) "localhost" "127.0.0.1") -}}
{{ $names | uniq | toJson }}
{{- end -}}

{{- define "coordinator.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: {{ .Values.runAsUser }}
runAsGroup: {{ .Values.runAsUser }}
fsGroup: {{ .Values.runAsUser }}
# Otherwise each mount would let the group read the private keys, and the program refuses them then.
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "coordinator.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- /* The administrator's files; with a PKI of one's own, its authority vouches for the port. */ -}}
{{- define "coordinator.adminVolume" -}}
- name: admin
  projected:
    defaultMode: 0440
    sources:
      - secret:
          name: {{ include "coordinator.adminSecret" . | quote }}
          items:
            - {key: tls.crt, path: tls.crt}
            - {key: tls.key, path: tls.key}
            {{- if not (include "coordinator.pkiSecret" .) }}
            - {key: ca.crt, path: ca.crt}
      {{- else }}
      - secret:
          name: {{ include "coordinator.pkiSecret" . | quote }}
          items:
            - {key: ca.crt, path: ca.crt}
      {{- end }}
{{- end -}}

{{- define "coordinator.jobResources" -}}
requests: {cpu: 50m, memory: 128Mi}
limits: {cpu: "1", memory: 512Mi}
{{- end -}}
