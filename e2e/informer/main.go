// Command informer follows Applications (dynamically) and ConfigMaps (typed) of a Banyan controller with client-go's own informers,
// and prints one line per event and per state. The test beside it restarts the controller meanwhile and reads the lines:
// what the informers hold must be what the controller holds, before and after.
package main

import (
	"bufio"
	"flag"
	"fmt"
	"os"
	"sort"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

var applications = schema.GroupVersionResource{Group: "banyan.dev", Version: "v1alpha1", Resource: "applications"}

// printer writes whole lines from several goroutines.
type printer struct {
	mutex sync.Mutex
	out   *bufio.Writer
}

func (p *printer) line(format string, values ...any) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	fmt.Fprintf(p.out, format+"\n", values...)
	p.out.Flush()
}

func name(object any) string {
	if gone, ok := object.(cache.DeletedFinalStateUnknown); ok {
		object = gone.Obj
	}
	accessor, err := meta.Accessor(object)
	if err != nil {
		return err.Error()
	}
	return accessor.GetNamespace() + "/" + accessor.GetName()
}

func follow(p *printer, kind string, informer cache.SharedIndexInformer) {
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(object any) { p.line("ADD %s %s", kind, name(object)) },
		DeleteFunc: func(object any) { p.line("DELETE %s %s", kind, name(object)) },
		UpdateFunc: func(before, after any) {
			old, _ := meta.Accessor(before)
			now, _ := meta.Accessor(after)
			if old.GetResourceVersion() != now.GetResourceVersion() {
				p.line("UPDATE %s %s", kind, name(after))
			}
		},
	})
	if err != nil {
		panic(err)
	}
}

func state(informer cache.SharedIndexInformer) string {
	var found []string
	for _, object := range informer.GetStore().List() {
		accessor, err := meta.Accessor(object)
		if err != nil {
			panic(err)
		}
		entry := name(object) + "@" + accessor.GetResourceVersion()
		if config, ok := object.(*corev1.ConfigMap); ok {
			entry += "=" + config.Data["x"]
		}
		found = append(found, entry)
	}
	sort.Strings(found)
	return strings.Join(found, " ")
}

func main() {
	kubeconfig := flag.String("kubeconfig", "", "which controller, and as whom")
	flag.Parse()
	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	out := &printer{out: bufio.NewWriter(os.Stdout)}
	stop := make(chan struct{})

	dynamicFactory := dynamicinformer.NewDynamicSharedInformerFactory(dynamic.NewForConfigOrDie(config), 10*time.Minute)
	apps := dynamicFactory.ForResource(applications).Informer()
	factory := informers.NewSharedInformerFactory(kubernetes.NewForConfigOrDie(config), 10*time.Minute)
	maps := factory.Core().V1().ConfigMaps().Informer()
	follow(out, "applications", apps)
	follow(out, "configmaps", maps)
	dynamicFactory.Start(stop)
	factory.Start(stop)
	if !cache.WaitForCacheSync(stop, apps.HasSynced, maps.HasSynced) {
		os.Exit(1)
	}
	out.line("SYNCED")

	// Each line on standard input asks for the state; its end ends the program.
	input := bufio.NewScanner(os.Stdin)
	for input.Scan() {
		out.line("STATE %s applications: %s configmaps: %s", input.Text(), state(apps), state(maps))
	}
	close(stop)
}
