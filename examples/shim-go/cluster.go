package main

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	"banyan.dev/examples/shim-go/shimv1"
)

const maxInstances = 256

// cluster holds what is desired and what runs. Every change of either ends in reconcile, which compares the two and never remembers
// what it did before: so doing it again is harmless, and a controller may come, go and repeat itself.
type cluster struct {
	folder, node, bind string

	mu        sync.Mutex
	works     map[string]*shimv1.Work
	instances map[string]*instance
	ports     map[string]*sitePort // by uid/component
	watchers  map[chan struct{}]bool
}

func newCluster(folder, node, bind string) (*cluster, error) {
	folder, err := filepath.Abs(folder)
	if err != nil {
		return nil, err
	}
	killLeftovers(folder)
	home := filepath.Join(folder, "instances")
	if err := os.RemoveAll(home); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(home, 0o700); err != nil {
		return nil, err
	}
	return &cluster{
		folder: folder, node: node, bind: bind, works: map[string]*shimv1.Work{}, instances: map[string]*instance{},
		ports: map[string]*sitePort{}, watchers: map[chan struct{}]bool{},
	}, nil
}

// update changes anything under the lock, brings what runs closer to what is desired, and wakes whoever tells the controller.
func (c *cluster) update(change func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change()
	c.reconcile()
	for watcher := range c.watchers {
		select {
		case watcher <- struct{}{}:
		default: // it has not looked since the last time
		}
	}
}

func (c *cluster) watch() (<-chan struct{}, func()) {
	changed := make(chan struct{}, 1)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.watchers[changed] = true
	return changed, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.watchers, changed)
	}
}

func (c *cluster) want(desired *shimv1.Desired) {
	c.update(func() {
		if desired.GetFull() {
			c.works = map[string]*shimv1.Work{}
		}
		for _, work := range desired.GetWorks() {
			c.works[work.GetUid()] = work
		}
		for _, uid := range desired.GetRemoved() {
			delete(c.works, uid)
		}
	})
}

func (c *cluster) end() {
	c.update(func() { c.works = map[string]*shimv1.Work{} })
	c.mu.Lock()
	waiting := make([]*instance, 0, len(c.instances))
	for _, each := range c.instances {
		waiting = append(waiting, each)
	}
	c.mu.Unlock()
	for _, each := range waiting {
		<-each.gone
	}
}

func (c *cluster) wanted(uid, name string) *shimv1.Component {
	for _, component := range c.works[uid].GetComponents() {
		if component.GetName() == name {
			return component
		}
	}
	return nil
}

// of returns the instances of a component that are not going, oldest first.
func (c *cluster) of(uid, name string) []*instance {
	var found []*instance
	for _, each := range c.instances {
		if each.uid == uid && each.component.GetName() == name && !each.stopping {
			found = append(found, each)
		}
	}
	slices.SortFunc(found, func(a, b *instance) int { return cmp.Compare(a.number, b.number) })
	return found
}

func (c *cluster) reconcile() {
	for _, each := range c.instances {
		if c.wanted(each.uid, each.component.GetName()) == nil {
			each.stop()
		}
	}
	for key, port := range c.ports {
		uid, name, _ := strings.Cut(key, "/")
		if component := c.wanted(uid, name); component == nil || component.GetPort() != port.number {
			port.close()
			delete(c.ports, key)
		}
	}
	for _, work := range c.works {
		for _, component := range work.GetComponents() {
			c.reconcileComponent(work, component)
		}
	}
}

// reconcileComponent: the old revision gives way only to instances of the new one that are ready, one after the other. A revision that
// never is replaces nobody.
func (c *cluster) reconcileComponent(work *shimv1.Work, component *shimv1.Component) {
	target := c.replicas(component)
	var current, old []*instance
	ready := 0
	for _, each := range c.of(work.GetUid(), component.GetName()) {
		switch {
		case each.component.GetRevision() != component.GetRevision():
			old = append(old, each)
		default:
			current = append(current, each)
			if each.ready {
				ready++
			}
		}
	}
	stopSurplus(current, target)
	stopSurplus(old, max(target-ready, 0))
	missing := max(target-len(current), 0)
	if len(old) > 0 {
		if missing = min(missing, 1); ready < len(current) {
			missing = 0
		}
	}
	key := work.GetUid() + "/" + component.GetName()
	if component.GetPort() > 0 && target > 0 && c.ports[key] == nil {
		c.ports[key] = openPort(c, work.GetUid(), component)
	}
	for range min(missing, maxInstances-len(c.instances)) {
		fresh := newInstance(c, work, component)
		c.instances[fresh.id] = fresh
		go fresh.run()
	}
}

// stopSurplus stops those beyond keep: first who does not serve, then the newest.
func stopSurplus(instances []*instance, keep int) {
	order := slices.Clone(instances)
	slices.SortStableFunc(order, func(a, b *instance) int {
		if a.ready != b.ready {
			if a.ready {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.number, b.number)
	})
	for _, each := range order[min(keep, len(order)):] {
		each.stop()
	}
}

func (c *cluster) replicas(component *shimv1.Component) int {
	if why, _ := c.hindrance(component); why != "" {
		return 0
	}
	return int(component.GetReplicas())
}

// hindrance: why a component cannot run here at all, as a word and a sentence.
func (c *cluster) hindrance(component *shimv1.Component) (reason, message string) {
	switch {
	case len(component.GetCommand()) == 0 || component.GetModel() != nil || component.GetImage() != "":
		return "Unsupported", "this shim runs commands only"
	case component.GetNode() != "" && component.GetNode() != c.node:
		return "NodeNotFound", fmt.Sprintf("node %s was asked for; this cluster's only node is %s", component.GetNode(), c.node)
	case component.GetArchitecture() != "" && component.GetArchitecture() != runtime.GOARCH:
		return "NodeNotFound", fmt.Sprintf("architecture %s was asked for; this machine is %s", component.GetArchitecture(), runtime.GOARCH)
	}
	return "", ""
}

// find returns the named instance, or a ready one, of the wanted revision if there is one; unready ones too if ready is not asked.
func (c *cluster) find(uid, component, id string, ready bool) (*instance, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var best []*instance
	for _, each := range c.instances {
		if (id != "" && each.id != id) || (uid != "" && each.uid != uid) || (component != "" && each.component.GetName() != component) {
			continue
		}
		if !ready || (each.ready && !each.stopping) {
			best = append(best, each)
		}
	}
	if len(best) == 0 {
		return nil, fmt.Errorf("no instance %s%s of %s is here%s", id, component, uid, map[bool]string{true: ", or none is ready"}[ready])
	}
	return best[rand.IntN(len(best))], nil
}

func (c *cluster) dial(uid, component, id string) (*net.TCPConn, error) {
	found, err := c.find(uid, component, id, true)
	if err != nil {
		return nil, err
	}
	return found.dial()
}

func (c *cluster) picture() map[string]*shimv1.ObservedWork {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := map[string]*shimv1.ObservedWork{}
	for uid, work := range c.works {
		seen := &shimv1.ObservedWork{Uid: uid, Version: work.GetVersion()}
		for _, component := range work.GetComponents() {
			seen.Components = append(seen.Components, c.observe(uid, component))
		}
		now[uid] = seen
	}
	for _, each := range c.instances {
		if now[each.uid] == nil { // withdrawn: it is shown until the last of its instances has ended
			now[each.uid] = &shimv1.ObservedWork{Uid: each.uid}
		}
		now[each.uid].Instances = append(now[each.uid].Instances, each.observe())
	}
	for _, seen := range now {
		slices.SortFunc(seen.Instances, func(a, b *shimv1.Instance) int { return cmp.Compare(a.GetId(), b.GetId()) })
	}
	return now
}

func (c *cluster) observe(uid string, component *shimv1.Component) *shimv1.ObservedComponent {
	seen := &shimv1.ObservedComponent{Name: component.GetName(), Desired: component.GetReplicas()}
	seen.Reason, seen.Message = c.hindrance(component)
	for _, each := range c.of(uid, component.GetName()) {
		if each.ready {
			seen.Ready++
		}
		if each.component.GetRevision() != component.GetRevision() {
			continue
		}
		if each.ready {
			seen.Updated++
		} else if each.reason != "" {
			seen.Reason, seen.Message = each.reason, each.id+": "+each.message
		}
	}
	if seen.Reason == "" && seen.Updated < component.GetReplicas() {
		seen.Reason, seen.Message = "Starting", "waiting until the new instances are ready"
	}
	if port := c.ports[uid+"/"+component.GetName()]; port != nil {
		if port.problem != "" {
			seen.Reason, seen.Message = "PortUnavailable", port.problem
		} else {
			seen.Port = port.number
		}
	}
	return seen
}

func (c *cluster) describeNode() *shimv1.Node {
	cpu, memory := int64(runtime.NumCPU())*1000, totalMemory()
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return &shimv1.Node{
		Name: c.node, Architecture: runtime.GOARCH, Os: runtime.GOOS, BootId: strings.TrimSpace(string(boot)), Ready: true,
		CpuMillis: cpu, MemoryBytes: memory, AllocatableCpuMillis: cpu, AllocatableMemoryBytes: memory * 9 / 10,
		UsedCpuMillis: -1, UsedMemoryBytes: -1,
	}
}

func totalMemory() int64 {
	text, _ := os.ReadFile("/proc/meminfo")
	for line := range strings.Lines(string(text)) {
		if words := strings.Fields(line); len(words) > 1 && words[0] == "MemTotal:" {
			kibibytes, _ := strconv.ParseInt(words[1], 10, 64)
			return kibibytes << 10
		}
	}
	return 0
}
