{{- define "silo-agent.fullname" -}}
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

{{- define "silo-agent.selectorLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "silo-agent.labels" -}}
{{ include "silo-agent.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: "fedreid"
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | quote }}
{{- end -}}

{{- define "silo-agent.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end -}}

{{- define "silo-agent.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{ default (include "silo-agent.fullname" .) .Values.serviceAccount.name }}
{{- else -}}
{{ required "serviceAccount.name is required where serviceAccount.create is false" .Values.serviceAccount.name }}
{{- end -}}
{{- end -}}

{{- /* The Secret of an identity of one's own PKI; empty: the one that joining brings. */ -}}
{{- define "silo-agent.identitySecret" -}}
{{- if .Values.identity.certManager.enabled -}}
{{ default (printf "%s-identity" (include "silo-agent.fullname" .)) .Values.identity.existingSecret }}
{{- else -}}
{{ .Values.identity.existingSecret }}
{{- end -}}
{{- end -}}

{{- /* Where the identity is a Secret of one's own PKI: its volumes and mounts. */ -}}
{{- define "silo-agent.identityVolumes" -}}
{{- with include "silo-agent.identitySecret" . }}
- name: identity
  secret:
    secretName: {{ . | quote }}
    defaultMode: 0440
{{- end }}
{{- end -}}

{{- define "silo-agent.identityMounts" -}}
{{- if include "silo-agent.identitySecret" . }}
- {name: identity, mountPath: /etc/fedreid/identity, readOnly: true}
{{- end }}
{{- end -}}

{{- define "silo-agent.claim" -}}
{{ default (printf "data-%s-0" (include "silo-agent.fullname" .)) .Values.persistence.existingClaim }}
{{- end -}}

{{- /* Exactly one source of images, read-only in each case. */ -}}
{{- define "silo-agent.datasetVolume" -}}
{{- $given := list -}}
{{- range $source := list "existingClaim" "hostPath" "csi" -}}
{{- if index $.Values.dataset $source }}{{ $given = append $given $source }}{{ end -}}
{{- end -}}
{{- if ne (len $given) 1 -}}
{{- fail "give exactly one of dataset.existingClaim, dataset.hostPath and dataset.csi" -}}
{{- end -}}
- name: dataset
{{- with .Values.dataset.existingClaim }}
  persistentVolumeClaim:
    claimName: {{ . | quote }}
    readOnly: true
{{- end }}
{{- with .Values.dataset.hostPath }}
  hostPath:
    path: {{ . | quote }}
    type: Directory
{{- end }}
{{- with .Values.dataset.csi }}
  csi:
    {{- toYaml (mergeOverwrite . (dict "readOnly" true)) | nindent 4 }}
{{- end }}
{{- end -}}

{{- define "silo-agent.datasetMount" -}}
- name: dataset
  mountPath: /var/lib/fedreid-dataset
  readOnly: true
  {{- with .Values.dataset.subPath }}
  subPath: {{ . | quote }}
  {{- end }}
{{- end -}}

{{- define "silo-agent.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: {{ .Values.runAsUser }}
runAsGroup: {{ .Values.runAsUser }}
fsGroup: {{ .Values.runAsUser }}
# Otherwise each mount would let the group read the private keys, and the program refuses them then.
fsGroupChangePolicy: OnRootMismatch
{{- with .Values.supplementalGroups }}
supplementalGroups:
  {{- toYaml . | nindent 2 }}
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "silo-agent.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "silo-agent.jobResources" -}}
requests: {cpu: 50m, memory: 128Mi}
limits: {cpu: "1", memory: 512Mi}
{{- end -}}
