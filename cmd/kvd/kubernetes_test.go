package main

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"net/http"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/kvd-io/kvd/internal/frontdoor"
	"github.com/kvd-io/kvd/internal/settings"
)

const kubernetesFile = "../../deploy/kubernetes/kvd.yaml"

// manifest is the part of the manifests that concerns kvd.
type manifest struct {
	Kind     string
	Metadata struct {
		Name   string
		Labels map[string]string
	}
	Spec struct {
		// Of services.
		ClusterIP                string                                     `yaml:"clusterIP"`
		PublishNotReadyAddresses bool                                       `yaml:"publishNotReadyAddresses"`
		Ports                    []servicePort                              // of the service
		Selector                 map[string]any                             // of the service; elsewhere it has matchLabels
		MaxUnavailable           int                                        `yaml:"maxUnavailable"`
		ServiceName              string                                     `yaml:"serviceName"`
		Replicas                 int                                        // of the set
		PodManagementPolicy      string                                     `yaml:"podManagementPolicy"`
		Template                 podTemplate                                // of the set
		VolumeClaimTemplates     []struct{ Metadata struct{ Name string } } `yaml:"volumeClaimTemplates"`
	}
}

type servicePort struct {
	Name       string
	Port       int
	TargetPort string `yaml:"targetPort"`
}

type podTemplate struct {
	Metadata struct{ Labels map[string]string }
	Spec     struct {
		Grace           int `yaml:"terminationGracePeriodSeconds"`
		SecurityContext struct {
			RunAsNonRoot bool `yaml:"runAsNonRoot"`
			RunAsUser    int  `yaml:"runAsUser"`
			FSGroup      int  `yaml:"fsGroup"`
		} `yaml:"securityContext"`
		Affinity struct {
			PodAntiAffinity map[string]any `yaml:"podAntiAffinity"`
		}
		Containers []container
		Volumes    []struct {
			Name   string
			Secret struct {
				SecretName string `yaml:"secretName"`
			}
		}
	}
}

type container struct {
	Args []string
	Env  []struct {
		Name, Value string
		ValueFrom   struct {
			FieldRef struct {
				FieldPath string `yaml:"fieldPath"`
			} `yaml:"fieldRef"`
			ResourceFieldRef struct{ Resource string } `yaml:"resourceFieldRef"`
		} `yaml:"valueFrom"`
	}
	Ports []struct {
		Name          string
		ContainerPort int `yaml:"containerPort"`
	}
	StartupProbe    probeSpec `yaml:"startupProbe"`
	LivenessProbe   probeSpec `yaml:"livenessProbe"`
	ReadinessProbe  probeSpec `yaml:"readinessProbe"`
	SecurityContext struct {
		ReadOnlyRootFilesystem   bool  `yaml:"readOnlyRootFilesystem"`
		AllowPrivilegeEscalation *bool `yaml:"allowPrivilegeEscalation"`
	} `yaml:"securityContext"`
	VolumeMounts []struct {
		Name      string
		MountPath string `yaml:"mountPath"`
	} `yaml:"volumeMounts"`
}

type probeSpec struct {
	HTTPGet struct{ Path, Port string } `yaml:"httpGet"`
}

// kubernetes returns the manifests by kind and name.
func kubernetes(t *testing.T) map[string]manifest {
	t.Helper()
	b, err := os.ReadFile(kubernetesFile)
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]manifest)
	for d := yaml.NewDecoder(bytes.NewReader(b)); ; {
		var m manifest
		if err := d.Decode(&m); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatalf("%s: %v", kubernetesFile, err)
		}
		all[m.Kind+"/"+m.Metadata.Name] = m
	}
}

// environ returns the environment of a pod as Kubernetes makes it: references
// to earlier variables are replaced, and the services of the namespace added.
func (c container) environ(t *testing.T, pod string) (list []string) {
	t.Helper()
	known := make(map[string]string)
	for _, e := range c.Env {
		value := e.Value
		for name, v := range known {
			value = strings.ReplaceAll(value, "$("+name+")", v)
		}
		switch {
		case e.ValueFrom.FieldRef.FieldPath == "metadata.name":
			value = pod
		case e.ValueFrom.ResourceFieldRef.Resource == "requests.memory":
			value = strconv.Itoa(1 << 30)
		}
		if value == "" || strings.Contains(value, "$(") {
			t.Fatalf("%s stays %q", e.Name, value)
		}
		known[e.Name] = value
		list = append(list, e.Name+"="+value)
	}
	return append(list, "KVD_PORT=tcp://10.96.0.7:12380", "KVD_SERVICE_HOST=10.96.0.7", "KVD_PEERS_SERVICE_PORT_METRICS=12381")
}

// TestKubernetesSettings has kvd resolve each pod's settings.
func TestKubernetesSettings(t *testing.T) {
	set := kubernetes(t)["StatefulSet/kvd"]
	c := set.Spec.Template.Spec.Containers[0]
	if len(c.Args) != 0 {
		t.Errorf("this test looks at variables only, not at %v", c.Args)
	}
	for i := range set.Spec.Replicas {
		pod := set.Metadata.Name + "-" + strconv.Itoa(i)
		s := resolve(t, c.environ(t, pod))
		own := pod + "." + set.Spec.ServiceName
		if s.ID != 0 || s.Name != pod || len(s.JoinURLs) != set.Spec.Replicas || hostsOf(s.JoinURLs)[i] != own || s.JoinURLs[i] != s.AdvertisePeer[0] {
			t.Errorf("%s, named %q, is one of %v, and is reached as %s", pod, s.Name, s.JoinURLs, s.AdvertisePeer)
		}
		if s.InsecurePeers || !strings.HasPrefix(s.ListenPeer, "https://") || !strings.Contains(s.AdvertiseClient[0], own) {
			t.Errorf("%s: peers on %s, clients told %v", pod, s.ListenPeer, s.AdvertiseClient)
		}
		c.holdPorts(t, s)
		c.holdFiles(t, s)
	}
	// A fourth pod is not in the list, and so founds nothing.
	if s := resolve(t, c.environ(t, "kvd-3")); s.ID != 0 || slices.Contains(s.JoinURLs, s.AdvertisePeer[0]) || len(s.JoinURLs) != set.Spec.Replicas {
		t.Errorf("a pod that joins: %+v", s)
	}
}

// holdPorts compares the ports that the pod names with those that kvd opens.
func (c container) holdPorts(t *testing.T, s *settings.Settings) {
	t.Helper()
	for name, listener := range map[string]string{"clients": s.ListenClient[0], "peers": s.ListenPeer, "metrics": s.ListenMetrics[0]} {
		if got := strconv.Itoa(c.port(t, name)); !settings.IsWildcard(listener) || !strings.HasSuffix(listener, ":"+got) {
			t.Errorf("port %s is %s, kvd listens on %s", name, got, listener)
		}
	}
}

func (c container) port(t *testing.T, name string) int {
	t.Helper()
	for _, p := range c.Ports {
		if p.Name == name {
			return p.ContainerPort
		}
	}
	t.Errorf("the container has no port %q", name)
	return 0
}

// holdFiles looks for the files and directories of the settings under the
// mounts.
func (c container) holdFiles(t *testing.T, s *settings.Settings) {
	t.Helper()
	mounts := make(map[string]string)
	for _, m := range c.VolumeMounts {
		mounts[m.Name] = m.MountPath
	}
	if !strings.HasPrefix(s.DataDir, mounts["data"]+"/") {
		t.Errorf("the data goes to %s; the volume, whose root belongs to root, is on %s", s.DataDir, mounts["data"])
	}
	for file, key := range map[string]string{s.PeerCertFile: "tls.crt", s.PeerKeyFile: "tls.key", s.PeerCAFile: "ca.crt"} {
		if file != mounts["tls"]+"/"+key {
			t.Errorf("%s is not %s of the secret on %s", file, key, mounts["tls"])
		}
	}
}

// TestKubernetesServices: selectors match the pods, ports exist, members can be
// resolved before they are ready, and only one is evicted at a time.
func TestKubernetesServices(t *testing.T) {
	all := kubernetes(t)
	set := all["StatefulSet/kvd"]
	pod := set.Spec.Template
	for name, m := range all {
		selector := m.Spec.Selector
		if labels, ok := selector["matchLabels"].(map[string]any); ok {
			selector = labels
		}
		if len(selector) == 0 {
			t.Errorf("%s selects nothing", name)
		}
		for label, value := range selector {
			if pod.Metadata.Labels[label] != value {
				t.Errorf("%s selects %s=%v; pods have %v", name, label, value, pod.Metadata.Labels)
			}
		}
		for _, p := range m.Spec.Ports {
			if got := pod.Spec.Containers[0].port(t, p.TargetPort); got != p.Port {
				t.Errorf("%s serves %s on %d, the pod on %d", name, p.Name, p.Port, got)
			}
		}
	}
	heads := all["Service/"+set.Spec.ServiceName].Spec
	if heads.ClusterIP != "None" || !heads.PublishNotReadyAddresses {
		t.Error("members would not find each other before they are ready")
	}
	if set.Spec.PodManagementPolicy != "Parallel" {
		t.Error("the second pod would wait for the first, which waits for the second")
	}
	if all["PodDisruptionBudget/kvd"].Spec.MaxUnavailable != 1 {
		t.Error("more than one pod may be evicted at once")
	}
}

// TestKubernetesPod compares the pod with what kvd needs and serves.
func TestKubernetesPod(t *testing.T) {
	set := kubernetes(t)["StatefulSet/kvd"]
	pod := set.Spec.Template.Spec
	c := pod.Containers[0]
	if grace := time.Duration(pod.Grace) * time.Second; grace <= 10*time.Second {
		t.Errorf("the pod is killed after %v", grace)
	}
	if sc := pod.SecurityContext; !sc.RunAsNonRoot || sc.RunAsUser != imageUser || sc.FSGroup != imageUser {
		t.Errorf("the pod runs as %+v, the image as %d", sc, imageUser)
	}
	if sc := c.SecurityContext; !sc.ReadOnlyRootFilesystem || sc.AllowPrivilegeEscalation == nil || *sc.AllowPrivilegeEscalation {
		t.Errorf("the container has %+v", sc)
	}
	if len(pod.Affinity.PodAntiAffinity) == 0 {
		t.Error("two members may run on one machine")
	}
	if v := set.Spec.VolumeClaimTemplates; len(v) != 1 || v[0].Metadata.Name != "data" {
		t.Errorf("volume claims: %v", v)
	}
	secrets := map[string]string{}
	for _, v := range pod.Volumes {
		secrets[v.Name] = v.Secret.SecretName
	}
	if want := map[string]string{"tls": "kvd-tls", "root": "kvd-root"}; !maps.Equal(secrets, want) { // TestKubernetesRootPassword has the second one
		t.Errorf("volumes: %v, want %v", secrets, want)
	}
	door := frontdoor.SideHandler(startingServer(), false)
	for _, p := range []struct {
		probe  probeSpec
		path   string
		status int // of a node that is starting
	}{
		{c.StartupProbe, "/livez", http.StatusOK}, {c.LivenessProbe, "/livez", http.StatusOK}, {c.ReadinessProbe, "/readyz", http.StatusServiceUnavailable},
	} {
		get := p.probe.HTTPGet
		if get.Path != p.path || get.Port != "metrics" {
			t.Errorf("a probe asks for %s on %s", get.Path, get.Port)
		}
		if w := ask(door, "GET", get.Path); w.Code != p.status {
			t.Errorf("while the node starts, the metrics listener answers %d to %s", w.Code, get.Path)
		}
	}
}

// TestCertificateNamesTheMembers: the certificate that cert-manager is asked for
// has the names by which members address each other.
func TestCertificateNamesTheMembers(t *testing.T) {
	b, err := os.ReadFile("../../deploy/kubernetes/certificate.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var m struct {
		Spec struct {
			SecretName string   `yaml:"secretName"`
			DNSNames   []string `yaml:"dnsNames"`
			Usages     []string
		}
	}
	if err := yaml.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	hosts := hostsOf(resolve(t, kubernetes(t)["StatefulSet/kvd"].Spec.Template.Spec.Containers[0].environ(t, "kvd-0")).JoinURLs)
	if !slices.Equal(m.Spec.DNSNames, hosts) || m.Spec.SecretName != "kvd-tls" {
		t.Errorf("the certificate in %s is for %v, members are %v", m.Spec.SecretName, m.Spec.DNSNames, hosts)
	}
	if !slices.Contains(m.Spec.Usages, "server auth") || !slices.Contains(m.Spec.Usages, "client auth") {
		t.Errorf("members are servers and clients; the certificate is for %v", m.Spec.Usages)
	}
}

// TestKubernetesRootPassword: the variable, the volume, and the Secret that the manifests
// leave to whoever wants rights fit each other, and no password comes with them.
func TestKubernetesRootPassword(t *testing.T) {
	text, err := os.ReadFile(kubernetesFile)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(text), "# - {name: KVD_ROOT_PASSWORD_FILE, value: ")
	file, _, _ := strings.Cut(rest, "}")
	if !found {
		t.Fatal("the variable is not there")
	}
	if _, err := settings.Load(nil, []string{"KVD_ROOT_PASSWORD_FILE=" + file}); err != nil {
		t.Error(err)
	}
	var secret struct {
		Kind       string
		Metadata   struct{ Name string }
		StringData map[string]string `yaml:"stringData"`
	}
	text, err = os.ReadFile("../../deploy/kubernetes/root-password.yaml")
	if err == nil {
		err = yaml.Unmarshal(text, &secret)
	}
	if err != nil {
		t.Fatal(err)
	}
	if password, ok := secret.StringData[path.Base(file)]; !ok || password != "" || secret.Kind != "Secret" {
		t.Errorf("%+v", secret)
	}
	pod := kubernetes(t)["StatefulSet/kvd"].Spec.Template.Spec
	mounted := ""
	for _, m := range pod.Containers[0].VolumeMounts {
		if m.MountPath == path.Dir(file) {
			mounted = m.Name
		}
	}
	for _, v := range pod.Volumes {
		if v.Name == mounted && v.Secret.SecretName == secret.Metadata.Name {
			return
		}
	}
	t.Errorf("%s is not in the Secret %s", file, secret.Metadata.Name)
}
