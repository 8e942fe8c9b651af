import sys; sys.path.insert(0,'tests/benchmarks'); sys.argv=['x','--shape','gemma2-9b','--ways','recipe_float32','--recipe-batches','1','--pairs','24','--memory-gib','110']
import torch, train_gpu, argparse
import numpy as np
g=argparse.Namespace(shape='gemma2-9b',pairs=24,max_tokens=2048,token_budget=8192,recomputed=0,recipe_batches=6,dropout=0.05,memory_gib=115,json=None)
b=train_gpu.Bench(g)
for way in ('recipe_float32','recipe'):
    torch.manual_seed(0)
    step=b.step_of(way)
    G=lambda: round(torch.cuda.memory_allocated()/2**30,1)
    P=lambda: round(torch.cuda.max_memory_allocated()/2**30,1)
    print(way,'weights',G())
    import inspect
    cells={n:c.cell_contents for n,c in zip(step.__code__.co_freevars, step.__closure__)}
    batches=cells['batches']
    seqs=train_gpu.sequences_of(b.pairs)
    for i,lo in enumerate(batches()):
        print(' batch',i,'width',max(len(seqs[j]) for j in b.chosen[i]),'after forward',G(),'peak',P()); torch.cuda.reset_peak_memory_stats()
        if i==0: torch.cuda.memory._record_memory_history(max_entries=200000)
        (lo.sum()).backward(); print('   after backward',G(),'peak',P()); torch.cuda.reset_peak_memory_stats()
        if i==0:
            import collections
            snap=torch.cuda.memory._snapshot(); tr=snap['device_traces'][0]
            live={};cur=0;best=0;bestlive={}
            for e in tr:
                if e['action']=='alloc': live[e['addr']]=(e['size'],e['frames']); cur+=e['size']
                elif e['action']=='free_completed' and e['addr'] in live: cur-=live.pop(e['addr'])[0]
                if cur>best: best=cur; bestlive=dict(live)
            agg=collections.Counter();cnt=collections.Counter()
            for s,f in bestlive.values():
                k=' < '.join(f"{x['filename'].split('/')[-1]}:{x['line']}" for x in f if x['filename'].endswith('.py'))[:130]
                agg[k]+=s;cnt[k]+=1
            print('   peak new',best/2**30)
            for k,s in agg.most_common(14): print('    ',round(s/2**30,2),cnt[k],k)
            torch.cuda.memory._record_memory_history(enabled=None)
        if i==1: break
    del lo, step, batches, cells
