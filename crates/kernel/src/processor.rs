//! Compiles a loop for each kind of processor and chooses one at run time.

/// Defines a function that runs its body with the widest vectors of the processor.
macro_rules! for_this_processor {
    (fn $name:ident($($argument:ident: $type:ty),* $(,)?) $body:block) => {
        fn $name($($argument: $type),*) {
            // Each caller below compiles its own copy.
            #[inline(always)]
            fn body($($argument: $type),*) $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512dq,fma")]
                fn with_avx512($($argument: $type),*) {
                    body($($argument),*);
                }

                #[target_feature(enable = "avx2,fma")]
                fn with_avx2($($argument: $type),*) {
                    body($($argument),*);
                }

                if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq") {
                    // SAFETY: the processor has the features that the function is compiled for.
                    return unsafe { with_avx512($($argument),*) };
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    // SAFETY: as above.
                    return unsafe { with_avx2($($argument),*) };
                }
            }
            body($($argument),*);
        }
    };
}

pub(crate) use for_this_processor;
